# mIoU 49.8, 50.8 at several scales (arXiv:2303.08810). Weights: MIT.
# Settings: github.com/rayleizhu/BiFormer: 8 x 8 regions, batch norms as they are, those of stem and downsampling
# decayed.
_base_ = ["../_base_/models/upernet.py", "../_base_/datasets/ade20k.py", "../_base_/schedules/160k.py"]
model = dict(
    backbone=dict(
        model="biformer_small",
        mixer_options=[dict(num_regions=8), dict(num_regions=8), dict(num_regions=8), None],
        map_norm="layernorm",
        norm_eval=True,
        drop_path_rate=0.3,
    )
)
optim_wrapper = dict(
    type="AmpOptimWrapper",
    loss_scale=512.0,
    paramwise_cfg=dict(custom_keys={"body.stem": dict(), ".downsample.norm": dict()}),
)
