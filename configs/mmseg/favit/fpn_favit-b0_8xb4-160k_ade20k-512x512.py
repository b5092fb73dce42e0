# No published figure at hand (github.com/q2479036243/FaViT). Weights: no licence stated.
# The authors (github.com/q2479036243/FaViT) name 160,000 steps on 8 GPUs with 4 images and no rate: the optimizer is
# PVT's.
_base_ = ["../_base_/models/fpn.py", "../_base_/datasets/ade20k_aligned_8xb4.py", "../_base_/schedules/40k.py"]
model = dict(backbone=dict(model="favit_b0", drop_path_rate=0.1))
train_cfg = dict(max_iters=160000, val_interval=16000)
default_hooks = dict(checkpoint=dict(interval=16000))
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=160000, by_epoch=False)]
