# box AP 47.7, mask AP 42.6, 48 M parameters (arXiv:2204.07143). Weights: MIT.
_base_ = "./mask-rcnn_nat-mini_fpn_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="nat_tiny"))
