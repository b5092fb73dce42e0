# mIoU 48.0, 76 M parameters (arXiv:2207.03341). Weights: MIT.
_base_ = "./upernet_soft-norm-small_8xb2-160k_ade20k-512x512.py"
model = dict(backbone=dict(model="soft_norm_medium"))
