# box AP 55.5, mask AP 48.0 (arXiv:2507.00698). Weights: no licence stated.
_base_ = "./cascade-mask-rcnn_mavit-s_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="mavit_b", drop_path_rate=0.4))
