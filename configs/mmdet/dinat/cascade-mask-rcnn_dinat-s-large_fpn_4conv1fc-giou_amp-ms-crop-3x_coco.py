# box AP 54.8, mask AP 47.2, 253 M parameters (arXiv:2209.15001). Weights: MIT.
_base_ = "./cascade-mask-rcnn_dinat-s-tiny_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py"
model = dict(backbone=dict(model="dinat_s_large", drop_path_rate=0.6))
# From weights of ImageNet-22k.
optim_wrapper = dict(optimizer=dict(lr=0.00005))
