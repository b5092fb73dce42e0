# box AP 47.2, mask AP 42.7, 69 M parameters (arXiv:2312.08874). Weights: no licence stated.
_base_ = "./mask-rcnn_agent-swin-tiny_fpn_1x_coco.py"
model = dict(
    backbone=dict(model="agent_swin_small", mixer_options=[dict(pooled=(9, 9)), dict(pooled=(12, 12)), None, None])
)
