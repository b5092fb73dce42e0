# No published figure at hand (arXiv:2507.00698). Weights: no licence stated.
_base_ = "./cascade-mask-rcnn_mavit-s_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="mavit_l", drop_path_rate=0.55))
train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=0.0002))
