# mIoU 38.5 (arXiv:2202.09741). Weights: Apache-2.0.
# Settings: github.com/Visual-Attention-Network/VAN-Segmentation, batch norms over all GPUs.
_base_ = ["../_base_/models/fpn.py", "../_base_/datasets/ade20k_aligned_8xb4.py", "../_base_/schedules/40k.py"]
model = dict(backbone=dict(model="van_b0", drop_path_rate=0.2))
sync_bn = "torch"
