# box AP 44.3, 55 M parameters (arXiv:2207.03341). Weights: MIT.
_base_ = "./retinanet_soft-norm-tiny_fpn_1x_coco.py"
model = dict(backbone=dict(model="soft_norm_medium"))
