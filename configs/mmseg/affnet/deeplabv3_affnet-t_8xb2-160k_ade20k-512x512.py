# mIoU 36.9, 3.5 M parameters (arXiv:2307.14008). Weights: MIT.
_base_ = "./deeplabv3_affnet-et_8xb2-160k_ade20k-512x512.py"
model = dict(backbone=dict(model="affnet_t"))
