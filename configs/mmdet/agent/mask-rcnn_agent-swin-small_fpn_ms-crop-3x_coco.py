# box AP 48.9, mask AP 43.8, 69 M parameters (arXiv:2312.08874). Weights: no licence stated.
_base_ = "./mask-rcnn_agent-swin-tiny_fpn_ms-crop-3x_coco.py"
model = dict(
    backbone=dict(model="agent_swin_small", mixer_options=[dict(pooled=(9, 9)), dict(pooled=(12, 12)), None, None])
)
