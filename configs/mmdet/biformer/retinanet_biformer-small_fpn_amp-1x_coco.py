# box AP 45.9 (arXiv:2303.08810). Weights: MIT.
# Settings: github.com/rayleizhu/BiFormer: 16 x 16 regions, batch norms as they are. The pyramid does not take the
# first map.
_base_ = ["../_base_/models/retinanet.py", "../_base_/schedules/1x_boxes.py"]
model = dict(
    backbone=dict(
        model="biformer_small",
        mixer_options=[dict(num_regions=16), dict(num_regions=16), dict(num_regions=16), None],
        map_norm=["identity", "layernorm", "layernorm", "layernorm"],
        norm_eval=True,
        drop_path_rate=0.2,
    )
)
optim_wrapper = dict(type="AmpOptimWrapper", loss_scale=512.0)
