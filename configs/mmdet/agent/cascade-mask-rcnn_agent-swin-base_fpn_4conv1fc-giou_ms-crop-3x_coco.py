# box AP 52.6, mask AP 45.3, 145 M parameters (arXiv:2312.08874). Weights: no licence stated.
_base_ = "./cascade-mask-rcnn_agent-swin-tiny_fpn_4conv1fc-giou_ms-crop-3x_coco.py"
model = dict(backbone=dict(model="agent_swin_base", drop_path_rate=0.4))
