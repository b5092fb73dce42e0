# box AP 48.4, mask AP 43.2, 70 M parameters (arXiv:2204.07143). Weights: MIT.
_base_ = "./mask-rcnn_nat-mini_fpn_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="nat_small", drop_path_rate=0.35))
