"""The `ff` command: parse, one backend call, render. Installed as `ffcli`; imports inside are relative."""
