# Mask R-CNN on a pyramid of five maps, boxes by two linear layers (arXiv:1703.06870).
_base_ = "mmdet::_base_/models/mask-rcnn_r50_fpn.py"
model = dict(type="mixzoo.Model", of="MaskRCNN", backbone=dict(_delete_=True, type="mixzoo.Backbone"))
