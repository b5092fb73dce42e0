# What the authors' detectors change in the backbone.
dinat_mini = dict(
    mixer_options=[
        dict(dilations=(1, 28)),
        dict(dilations=(1, 7, 1, 14)),
        dict(dilations=(1, 3, 1, 5, 1, 7)),
        dict(dilations=(1, 3)),
    ],
    map_norm="layernorm_1e-5",
)
