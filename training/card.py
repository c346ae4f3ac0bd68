def write_card(model, folder): pass
