# What the authors' detectors change in the backbone.
agent_swin_tiny = dict(
    mixer_options=[dict(pooled=(9, 9)), dict(pooled=(12, 12)), dict(pooled=(14, 14)), None],
    map_norm="layernorm_1e-5",
)
