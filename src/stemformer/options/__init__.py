"""Options of every command, documented once and shared by the command line and the Python API.

Each command has a frozen dataclass, which inherits the groups of options that it shares with others. The command line
builds its parameters and help from it; `accepts` gives the Python function of the command the same options as
keywords. Names, defaults and help are defined nowhere else.
"""

from stemformer.options.commands import *
from stemformer.options.groups import *
from stemformer.options.keywords import OLD_NAMES, accepts, read_duration, renamed
