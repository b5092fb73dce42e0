# mIoU 48.9 (arXiv:2303.08810). Weights: MIT.
# Settings: github.com/rayleizhu/BiFormer: 8 x 8 regions, batch norms as they are, a rate that falls as a cosine.
_base_ = ["../_base_/models/fpn.py", "../_base_/datasets/ade20k_aligned_8xb4.py", "../_base_/schedules/80k.py"]
model = dict(
    backbone=dict(
        model="biformer_small",
        mixer_options=[dict(num_regions=8), dict(num_regions=8), dict(num_regions=8), None],
        map_norm="layernorm",
        norm_eval=True,
        drop_path_rate=0.15,
    )
)
optim_wrapper = dict(type="AmpOptimWrapper", loss_scale=512.0, optimizer=dict(lr=0.0002))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=1000, by_epoch=False),
    dict(type="CosineAnnealingLR", eta_min=0.0, begin=0, end=80000, by_epoch=False),
]
