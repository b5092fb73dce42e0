# mIoU 41.6 (arXiv:2102.12122). Weights: Apache-2.0.
_base_ = "./fpn_pvt-tiny_8xb4-40k_ade20k-512x512.py"
model = dict(backbone=dict(model="pvt_medium", drop_path_rate=0.0))
