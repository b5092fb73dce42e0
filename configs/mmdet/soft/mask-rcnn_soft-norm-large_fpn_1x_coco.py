# box AP 47.0, mask AP 42.2, 84 M parameters (arXiv:2207.03341). Weights: MIT.
_base_ = "./mask-rcnn_soft-norm-tiny_fpn_1x_coco.py"
model = dict(backbone=dict(model="soft_norm_large"))
