# Semantic FPN (arXiv:1901.02446) for the 150 classes of ADE20K.
_base_ = f"{__import__('mmseg').__path__[0]}/.mim/configs/_base_/models/fpn_r50.py"
model = dict(
    type="mixzoo.Model",
    of="EncoderDecoder",
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(_delete_=True, type="mixzoo.Backbone"),
    decode_head=dict(num_classes=150),
)
