# Semantic FPN with a small SHViT on scenes: Fashion-MNIST's items on photographs.
#
# Data     that of mask-rcnn_shvit-small_scenes
# Result   mIoU 62.1 on pictures whose items and parts of photographs were not trained on; with the backbone frozen at
#          random weights (model.backbone.frozen_stages=3 model.backbone.checkpoint=None) 39.5
# Cost     10 minutes of one thread of a busy AMD EPYC

# as "mmseg::_base_/..." would be, if MMEngine knew what the maintained fork is called
_base_ = [
    f"{__import__('mmseg').__path__[0]}/.mim/configs/_base_/{name}.py"
    for name in ("models/fpn_r50", "default_runtime", "schedules/schedule_40k")
]
custom_imports = dict(imports=["mixzoo.zoo.openmmlab"])
data_root = "scenes/"
iters = 1600
classes = ("background", "Trouser", "Pullover", "Dress", "Sandal", "Bag", "Ankle boot")
palette = [[23 * i, (97 * i) % 256, (151 * i) % 256] for i in range(len(classes))]
strides = [16, 32, 64]
norm = dict(type="BN", requires_grad=True)

model = dict(
    type="mixzoo.Model",
    of="EncoderDecoder",
    pretrained=None,
    data_preprocessor=dict(mean=[73] * 3, std=[90] * 3, size_divisor=1),
    backbone=dict(
        _delete_=True,
        type="mixzoo.Backbone",
        model="shvit",
        depths=[1, 2, 1],
        dims=[64, 128, 156],
        partial_dims=[None, 32, 40],
        strides=strides,
        checkpoint="shvit_fashion",
    ),
    neck=dict(type="mixzoo.FPN", out_channels=64, num_outs=4, num_finer=1),
    decode_head=dict(
        in_channels=[64] * 4,
        in_index=[0, 1, 2, 3],
        feature_strides=[8, *strides],
        channels=64,
        num_classes=len(classes),
        norm_cfg=norm,
    ),
)

scale = (312, 240)  # width, height
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
dataset = dict(
    type="BaseSegDataset",
    data_root=data_root,
    metainfo=dict(classes=classes, palette=palette),
    img_suffix=".jpg",
    seg_map_suffix=".png",
    reduce_zero_label=False,
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path="train", seg_map_path="annotations/train"), pipeline=train_pipeline, **dataset
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(data_prefix=dict(img_path="val", seg_map_path="annotations/val"), pipeline=test_pipeline, **dataset),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

train_cfg = dict(max_iters=iters, val_interval=400)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys=dict(backbone=dict(lr_mult=0.5))),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", T_max=iters, eta_min=1e-5, by_epoch=False),
]
default_hooks = dict(checkpoint=dict(interval=400, max_keep_ckpts=2))
randomness = dict(seed=0)
