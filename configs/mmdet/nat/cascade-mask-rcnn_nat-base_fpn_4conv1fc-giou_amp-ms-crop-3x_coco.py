# box AP 52.3, mask AP 45.1, 147 M parameters (arXiv:2204.07143). Weights: MIT.
_base_ = "./cascade-mask-rcnn_nat-mini_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="nat_base", drop_path_rate=0.5))
