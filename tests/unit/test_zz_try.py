import sys; sys.path.insert(0,'tests/unit'); sys.path.insert(0,'.')
def test_x(tiny_llama, make_model, make_hf, rule):
    from editing_reference import search_target
    from editing.requests import requests_of
    for fam in ("llama","gptj","gpt_neox"):
      m=make_model(fam); hf=make_hf(fam)
      for layer in (0,1):
       for lookup in ("subject_last","last"):
        for lr in (0.1,1.0):
          for r in requests_of(rule,lookup):
            z,i,t=search_target(hf,m.tokenizer,r,m.down_projection(layer).name,layer,("","The area of a square is 4. "),steps=12,learning_rate=lr,weight_decay=3.,kl_factor=0.5,clamp=4.,stop_loss=.05,lookup=lookup)
            print(fam,layer,lookup,lr,r.form,[round(p['nll'],3) for p in t],[round(p['kl'],4) for p in t][-3:],[round(p['decay'],4) for p in t][-2:], i.norm().item())
