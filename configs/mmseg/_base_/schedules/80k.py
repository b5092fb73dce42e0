# Semantic FPN as in RALA (arXiv:2411.07635): 80,000 steps of AdamW that decays everything, polynomial rate, no warm-up.
_base_ = [f"{__import__('mmseg').__path__[0]}/.mim/configs/_base_/schedules/schedule_80k.py", "../runtime.py"]
optim_wrapper = dict(optimizer=dict(_delete_=True, type="AdamW", lr=0.0001, weight_decay=0.0001))
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-6, begin=0, end=80000, by_epoch=False)]
