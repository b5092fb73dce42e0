# mIoU 41.1 at several scales, 32 M parameters (arXiv:2202.09741). Weights: Apache-2.0.
# Settings: github.com/Visual-Attention-Network/VAN-Segmentation, batch norms over all GPUs.
_base_ = ["../_base_/models/upernet.py", "../_base_/datasets/ade20k_aligned.py", "../_base_/schedules/160k.py"]
model = dict(backbone=dict(model="van_b0", drop_path_rate=0.1))
sync_bn = "torch"
