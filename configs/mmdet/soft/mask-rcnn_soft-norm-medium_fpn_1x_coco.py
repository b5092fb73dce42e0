# box AP 46.6, mask AP 42.0, 65 M parameters (arXiv:2207.03341). Weights: MIT.
_base_ = "./mask-rcnn_soft-norm-tiny_fpn_1x_coco.py"
model = dict(backbone=dict(model="soft_norm_medium"))
