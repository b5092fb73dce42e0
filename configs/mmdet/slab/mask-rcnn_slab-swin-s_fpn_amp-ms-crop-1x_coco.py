# No published figure at hand (arXiv:2405.11582). Weights: no licence stated.
_base_ = "./mask-rcnn_slab-swin-t_fpn_amp-ms-crop-1x_coco.py"
model = dict(backbone=dict(model="slab_swin_s", drop_path_rate=0.2))
