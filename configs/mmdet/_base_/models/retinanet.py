# RetinaNet on a pyramid of five maps from stride 8 on (arXiv:1708.02002).
_base_ = "mmdet::_base_/models/retinanet_r50_fpn.py"
model = dict(type="mixzoo.Model", of="RetinaNet", backbone=dict(_delete_=True, type="mixzoo.Backbone"))
