# mIoU 50.7, 51.7 at several scales, 113 M parameters (arXiv:2406.02021). Weights: Apache-2.0.
_base_ = "./upernet_ffnet-2_8xb2-160k_ade20k-512x512.py"
model = dict(backbone=dict(model="ffnet_4", drop_path_rate=0.3))
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.9, num_layers=12))
