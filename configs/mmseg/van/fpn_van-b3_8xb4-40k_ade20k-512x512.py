# mIoU 48.1 (arXiv:2202.09741). Weights: Apache-2.0.
_base_ = "./fpn_van-b0_8xb4-40k_ade20k-512x512.py"
model = dict(backbone=dict(model="van_b3", drop_path_rate=0.3))
