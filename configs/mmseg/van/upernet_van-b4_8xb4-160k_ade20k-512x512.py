# mIoU 52.2 at several scales, 90 M parameters (arXiv:2202.09741). Weights: no licence stated.
_base_ = "./upernet_van-b0_8xb2-160k_ade20k-512x512.py"
model = dict(backbone=dict(model="van_b4", drop_path_rate=0.4))
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
