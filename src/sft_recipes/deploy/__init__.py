"""How is the model that was trained put to use? Merge it, ask it, talk to it, serve it, convert it, hand it over."""
