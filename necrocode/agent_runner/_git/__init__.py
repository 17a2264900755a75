"""The only door to git: no other module starts it.

Every git process gets a built-up environment (nothing inherited but what is listed in ``settings``), a HOME and a
global configuration of our own, no hooks, no filters, no prompts, no helper protocols, and a time limit. What it may
talk to is decided in ``remotes``. A token reaches git by askpass, in the environment of the network commands alone, and
only for the hosts it is meant for.
"""

from necrocode.agent_runner._git.checkout import Checkout as Checkout
from necrocode.agent_runner._git.checkout import open_checkout as open_checkout
from necrocode.agent_runner._git.door import DEFAULT_TIMEOUT_SECONDS as DEFAULT_TIMEOUT_SECONDS
from necrocode.agent_runner._git.door import Git as Git
from necrocode.agent_runner._git.failures import GitError as GitError
from necrocode.agent_runner._git.failures import ObjectTooLargeError as ObjectTooLargeError
from necrocode.agent_runner._git.failures import RemoteRefusedError as RemoteRefusedError
from necrocode.agent_runner._git.failures import TreeTooLargeError as TreeTooLargeError
from necrocode.agent_runner._git.objects import MODE_EXECUTABLE as MODE_EXECUTABLE
from necrocode.agent_runner._git.objects import MODE_FILE as MODE_FILE
from necrocode.agent_runner._git.objects import MODE_SUBMODULE as MODE_SUBMODULE
from necrocode.agent_runner._git.objects import MODE_SYMLINK as MODE_SYMLINK
from necrocode.agent_runner._git.objects import MODE_TREE as MODE_TREE
from necrocode.agent_runner._git.objects import Author as Author
from necrocode.agent_runner._git.objects import FileChange as FileChange
from necrocode.agent_runner._git.objects import ObjectReader as ObjectReader
from necrocode.agent_runner._git.objects import TreeEntry as TreeEntry
from necrocode.agent_runner._git.remotes import RemoteRules as RemoteRules
from necrocode.agent_runner._git.repository import RECEIVE_PACK as RECEIVE_PACK
from necrocode.agent_runner._git.repository import REMOTE_HEAD as REMOTE_HEAD
from necrocode.agent_runner._git.repository import UPLOAD_PACK as UPLOAD_PACK
from necrocode.agent_runner._git.repository import Repository as Repository
