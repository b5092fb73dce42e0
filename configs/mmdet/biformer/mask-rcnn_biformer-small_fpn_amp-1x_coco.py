# box AP 47.8, mask AP 43.2 (arXiv:2303.08810). Weights: MIT.
# Settings: github.com/rayleizhu/BiFormer: 16 x 16 regions, batch norms as they are, those of stem and downsampling
# decayed.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/1x_swin.py"]
model = dict(
    backbone=dict(
        model="biformer_small",
        mixer_options=[dict(num_regions=16), dict(num_regions=16), dict(num_regions=16), None],
        map_norm="layernorm",
        norm_eval=True,
        drop_path_rate=0.2,
    )
)
optim_wrapper = dict(
    type="AmpOptimWrapper",
    paramwise_cfg=dict(custom_keys={"body.stem": dict(), ".downsample.norm": dict()}),
)
