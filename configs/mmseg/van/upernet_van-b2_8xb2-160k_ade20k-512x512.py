# mIoU 50.1 at several scales, 57 M parameters (arXiv:2202.09741). Weights: Apache-2.0.
_base_ = "./upernet_van-b0_8xb2-160k_ade20k-512x512.py"
model = dict(backbone=dict(model="van_b2"))
