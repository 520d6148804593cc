-- library.lua -- what is loaded here, and the first write to a fresh store.

-- Version, hash and signatures, for the handshake at connect and for `ff library status`.
define {
  name = "ff_library", args = {}, returns = {}, errors = {}, flags = { "no-writes" }, scope = "none",
  run = function()
    local described = {}
    for name, s in pairs(signatures) do -- order-free
      described[name] = { args = #s.args > 0 and s.args or nil, returns = s.returns, errors = #s.errors > 0 and s.errors or nil, flags = s.flags }
    end
    return cjson.encode({ version = LIBRARY.version, compatible_since = LIBRARY.compatible_since, sha = LIBRARY.sha, signatures = described })
  end,
}

-- Does nothing: what one call costs, for benchmarks beside the real ones.
define {
  name = "ff_noop", args = { "data:blob" }, returns = { "ok" }, errors = {}, flags = { "no-writes" }, unready = true,
  run = function() return { "ok" } end,
}

-- Create a partition's header. Counts are fixed for good: the same counts again are answered, others refused.
define {
  name = "ff_init_partition", args = { "counts:str" }, returns = { "initialised", "already_satisfied" },
  errors = { "revision_conflict" }, flags = {}, unready = true,
  run = function(p, a)
    local known = redis.call("HGET", p.key, "counts")
    if known == a.counts then return { "already_satisfied", "initialised" } end
    if known then return reply.reject("revision_conflict", known) end
    partition.create(p, a.counts)
    return { "initialised" }
  end,
}
