# mIoU 47.6, 46 M parameters (arXiv:2211.07198). Weights: no licence stated.
# Settings: github.com/hkzhang-git/FcaFormer, with a lower rate in earlier layers. Every map has a convolution and a
# norm of its own. Differs: scales and biases of cross tokens, vectors here, are not decayed. The figure is that at
# several scales and with flips.
_base_ = ["../_base_/models/upernet.py", "../_base_/datasets/ade20k.py", "../_base_/schedules/160k.py"]
model = dict(
    backbone=dict(model="fcaformer_l2_dense", drop_path_rate=0.1),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
optim_wrapper = dict(
    type="AmpOptimWrapper",
    constructor="mixzoo.LayerDecay",
    optimizer=dict(lr=0.0001),
    paramwise_cfg=dict(
        _delete_=True, decay_rate=0.9, decay_type="stage_wise", num_layers=6, first=["cross.scale", "cross.bias"]
    ),
)
