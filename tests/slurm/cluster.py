"""A Slurm cluster of one machine, for tests.

. "$(python tests/slurm/cluster.py up)"    start it, and set the shell's variables
python tests/slurm/cluster.py down         stop it, and remove its folder

It needs root, and Debian's packages, which it installs; everything else is in one folder.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(os.environ.get("SLURM_TEST_ROOT", "/tmp/spp-slurm-test"))
PACKAGES = [
    "slurmctld",
    "slurmd",
    "slurm-client",
    "munge",
    "slurmdbd",
    "mariadb-server-core",
    "mariadb-client-core",
]
ENV = {
    **os.environ,
    "PATH": f"/usr/sbin:/sbin:{os.environ['PATH']}",
    "SLURM_CONF": f"{ROOT}/slurm.conf",
    "MYSQL_UNIX_PORT": f"{ROOT}/mysql.sock",
    "DEBIAN_FRONTEND": "noninteractive",
}


def say(*what):
    "Print a line about what is happening"
    print("slurm:", *what, file=sys.stderr, flush=True)


def do(*command, **kw):
    "Run a command with the cluster's environment and wait"
    return subprocess.run(
        [str(c) for c in command],
        env=ENV,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        **kw,
    )


def works(*command):
    "Does the command end well within half a minute?"
    try:
        return do(*command, timeout=30).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False


def must(*command):
    "Run a command; end the program with its words if it fails"
    done = do(*command)
    if done.returncode:
        said = (done.stdout + done.stderr)[-800:]
        sys.exit(f"slurm: {' '.join(map(str, command))} failed: {said}")


def until(what, *command, seconds=60):
    "Wait until a command works; end the program if it does not in time"
    end = time.time() + seconds
    while not works(*command):
        if time.time() > end:
            sys.exit(f"slurm: {what} did not come up in {seconds} s; its log is in {ROOT}")
        time.sleep(0.2)


def node():
    "A name by which this machine finds itself without a network, as jobs find their first process"
    name = socket.gethostname().split(".")[0]
    try:
        return name if socket.gethostbyname(name).startswith("127.") else "localhost"
    except OSError:
        return "localhost"


def port():
    "The first of three free ports in a row, below those that jobs draw for themselves"

    def free(n):
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", n))
                return True
            except OSError:
                return False

    return next(n for n in range(16917, 19000, 4) if all(map(free, range(n, n + 3))))


# Of the two lines that are not obvious: a job that is queued again waits as long as its credential
# lives, so that is short; and files are named by job, so no number may come twice.
SLURM = """
ClusterName=test
SlurmctldHost={name}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
JobRequeue=1
ReturnToService=2
KillWait=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
FirstJobId={first_job}
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={database_port}
AccountingStoragePass={root}/munge/socket
NodeName={name} NodeAddr=127.0.0.1 Port={node_port} CPUs=8 RealMemory=8000 State=UNKNOWN
PartitionName=debug Nodes={name} Default=YES MaxTime=INFINITE State=UP
"""

DATABASE = """
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={database_port}
SlurmUser=root
LogFile={root}/slurmdbd.log
PidFile={root}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
CommunicationParameters=NoInAddrAny
"""


def configuration():
    "Write the files of settings, and the one that a shell reads"
    first = port()
    values = dict(
        root=ROOT,
        name=node(),
        port=first,
        database_port=first + 1,
        node_port=first + 2,
        first_job=int(time.time()) % 600000 * 100 + 1000,
    )
    (ROOT / "slurm.conf").write_text(SLURM.lstrip().format(**values))
    (ROOT / "slurmdbd.conf").write_text(DATABASE.lstrip().format(**values))
    (ROOT / "slurmdbd.conf").chmod(0o600)
    (ROOT / "env.sh").write_text(f"export SLURM_CONF={ROOT}/slurm.conf GLOO_SOCKET_IFNAME=lo\n")


def install():
    "Install Debian's packages that are missing"
    status = {p: do("dpkg-query", "-W", "-f=${Status}", p).stdout for p in PACKAGES}
    missing = [p for p, said in status.items() if "install ok" not in said]
    if not missing:
        return
    say("installing", *missing)
    options = ("DPkg::Lock::Timeout=120", "Acquire::http::Timeout=20", "Acquire::Retries=1")
    apt = ["apt-get", "-qq", *(x for option in options for x in ("-o", option))]
    must(*apt, "update")
    must(*apt, "install", "-y", "--no-install-recommends", *missing)


def up():
    "Start the cluster, if it is not up, and print the file that a shell reads"
    if works("scontrol", "ping") and works("sacct", "-n", "-X"):
        print(ROOT / "env.sh")
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit("slurm: needs root and apt-get")
    install()
    down()
    try:
        start()
    except BaseException:  # half a cluster is none, also where the time is over
        down()
        raise
    say("up:", do("sinfo", "-h").stdout.strip())
    print(ROOT / "env.sh")


def start():
    "Start munge, the database, accounting, the controller and a node"
    for name in ("state", "spool", "munge", "db"):
        (ROOT / name).mkdir(parents=True, exist_ok=True)
    (ROOT / "munge").chmod(0o711)
    key = ROOT / "munge/key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    configuration()
    files = dict(socket="socket", log_file="log", pid_file="pid", seed_file="seed")
    options = [f"--{k.replace('_', '-')}={ROOT}/munge/{v}" for k, v in files.items()]
    must("munged", f"--key-file={key}", *options)
    start_database()
    must("slurmdbd")
    until("accounting", "sacctmgr", "-n", "show", "cluster")
    do("sacctmgr", "-i", "add", "cluster", "test")
    must("slurmctld", "-f", ENV["SLURM_CONF"], "-i")
    must("slurmd", "-f", ENV["SLURM_CONF"], "-N", node())
    until("a node that runs a job", "srun", "--quiet", "-t", "1", "true")


def start_database():
    "Start MariaDB in the cluster's folder, without a network"
    common = ("--no-defaults", "--user=root", f"--datadir={ROOT}/db")
    must(
        "mariadb-install-db",
        *common,
        "--skip-test-db",
        "--auth-root-authentication-method=socket",
    )
    own = (f"--socket={ROOT}/mysql.sock", "--skip-networking", f"--log-error={ROOT}/mariadb.log")
    database = subprocess.Popen(
        ["mariadbd", *common, *own, f"--pid-file={ROOT}/mariadbd.pid"],
        env=ENV,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    (ROOT / "mariadbd.pid").write_text(str(database.pid))  # it writes the same, later
    sql = ("mariadb", "--no-defaults", "-u", "root", "-S", f"{ROOT}/mysql.sock", "-e")
    until("the database", *sql, "select 1")
    must(*sql, "create database if not exists slurm_acct_db")


def runs(name, pid):
    "Is the process `pid` still the one that wrote its file?"
    comm = Path(f"/proc/{pid}/comm")
    return bool(pid) and comm.exists() and name in comm.read_text()


def stop(name):
    "End the daemon `name` if it runs: politely, and after ten seconds by force"
    file = ROOT / f"{name}.pid"
    if not file.exists():
        return
    pid = file.read_text().strip()
    for signal_ in ("-TERM", "-KILL"):
        for _ in range(50):
            if not runs(name, pid):
                return
            do("kill", signal_, pid)
            time.sleep(0.2)


def down():
    "Stop the cluster and remove its folder"
    if (ROOT / "slurm.conf").exists() and works("scontrol", "ping"):
        do("scancel", "-u", "root")
        time.sleep(1)
        do("scontrol", "shutdown")
        time.sleep(1)
    for name in ("slurmd", "slurmctld", "slurmdbd", "mariadbd"):
        stop(name)
    if (ROOT / "munge/socket").exists():
        do("munged", "--stop", f"--socket={ROOT}/munge/socket")
    shutil.rmtree(ROOT, ignore_errors=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("slurm: told to end"))
    {"up": up, "down": down}[sys.argv[1]]()
