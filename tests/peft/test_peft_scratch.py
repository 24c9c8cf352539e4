def test_sites_say_where_the_shape_stays():
    host = Host(zoo()["hiera"]())
    keeps = {site.name: site.keeps_shape for site in host.sites}
    assert keeps["blocks.0.attn"]
    assert keeps["blocks.1.mlp"]
    assert not keeps["blocks.1.attn"]  # pools its queries into a wider stage
