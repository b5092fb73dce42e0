# mIoU 42.4 (arXiv:2111.11418). Weights: Apache-2.0.
_base_ = "./fpn_poolformer-s12_8xb4-40k_ade20k-512x512.py"
model = dict(backbone=dict(model="poolformer_m36"))
