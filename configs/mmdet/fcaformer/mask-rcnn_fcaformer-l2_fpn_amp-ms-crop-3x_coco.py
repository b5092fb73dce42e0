# box AP 47.0, mask AP 42.1, 37 M parameters (arXiv:2211.07198). Weights: no licence stated.
# Settings: github.com/hkzhang-git/FcaFormer, with a lower rate in earlier layers. Every map has a convolution and a
# norm of its own. Differs: scales and biases of cross tokens, vectors here, are not decayed.
_base_ = ["../_base_/models/mask-rcnn.py", "../_base_/schedules/3x_swin.py"]
model = dict(backbone=dict(model="fcaformer_l2_dense", drop_path_rate=0.2))
optim_wrapper = dict(
    type="AmpOptimWrapper",
    constructor="mixzoo.LayerDecay",
    paramwise_cfg=dict(
        _delete_=True, decay_rate=0.95, decay_type="layer_wise_cab", num_layers=6, first=["cross.scale", "cross.bias"]
    ),
)
