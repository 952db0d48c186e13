#!/usr/bin/env python3
"""Records what oslo.config makes of the files beside this one.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install oslo.config
    /tmp/venv/bin/python record.py

Run it again after adding a file. The tests compare with the recordings, so they need neither Python
nor a package index.
"""

import glob
import json
import os

from oslo_config import cfg

HERE = os.path.dirname(os.path.abspath(__file__))
TYPED = {
    'DEFAULT': {
        'l3_ha': 'bool', 'router_distributed': 'bool', 'enable_dvr': 'bool', 'router_auto_schedule': 'bool',
        'max_l3_agents_per_router': 'int', 'default_availability_zones': 'list', 'state_path': 'str',
        'ha_confs_path': 'str', 'dns_domain': 'str', 'bind_host': 'str', 'l3_ha_network_physical_name': 'str',
    },
    'evergate': {'run_path': 'str', 'netns_path': 'str', 'identity_file': 'str', 'join_token_file': 'str'},
    'agent': {'availability_zone': 'str'},
    'ml2': {'mechanism_drivers': 'list', 'extension_drivers': 'list', 'type_drivers': 'list'},
}
KINDS = {'bool': cfg.BoolOpt, 'int': cfg.IntOpt, 'list': cfg.ListOpt, 'str': cfg.StrOpt}


def raw(path):
    sections = {}
    parser = cfg.ConfigParser(path, sections)
    try:
        parser.parse()
    except cfg.ParseError as error:
        return {'fault_line': error.lineno}
    return {'sections': sections}


def typed(path):
    conf = cfg.ConfigOpts()
    for group, options in TYPED.items():
        for name, kind in options.items():
            conf.register_opt(KINDS[kind](name), group=None if group == 'DEFAULT' else group)
    conf(['--config-file', path])
    of = lambda group: conf if group == 'DEFAULT' else conf[group]
    return {'values': {g: {name: of(g)[name] for name in names} for g, names in TYPED.items()}}


for path in sorted(glob.glob(os.path.join(HERE, '*.conf'))):
    result = raw(path)
    if os.path.basename(path) == 'typed.conf':
        result.update(typed(path))
    with open(path[:-len('conf')] + 'json', 'w') as out:
        json.dump(result, out, indent=1, ensure_ascii=False)
        out.write('\n')
