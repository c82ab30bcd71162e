"""A Slurm cluster of one machine, for tests: `. "$(python tests/slurm/cluster.py up)"`, and `down`. Needs root and Debian's packages, which it installs; everything else is in one folder"""

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
    print("slurm:", *what, file=sys.stderr, flush=True)


def do(*command, quiet=True, **kw):
    return subprocess.run(
        [str(c) for c in command],
        env=ENV,
        stdin=subprocess.DEVNULL,
        capture_output=quiet,
        text=True,
        **kw,
    )


def works(*command):
    try:
        return do(*command, timeout=30).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False


def must(*command):
    r = do(*command)
    if r.returncode:
        sys.exit(f"slurm: {' '.join(map(str, command))} failed: {(r.stdout + r.stderr)[-800:]}")


def until(what, *command, seconds=60):
    end = time.time() + seconds
    while not works(*command):
        if time.time() > end:
            sys.exit(f"slurm: {what} did not come up in {seconds} s; its log is in {ROOT}")
        time.sleep(0.2)


def node():
    "A name of this machine that leads to itself without a network: jobs find their first process by it"
    try:
        return (
            socket.gethostname().split(".")[0]
            if socket.gethostbyname(socket.gethostname().split(".")[0]).startswith("127.")
            else "localhost"
        )
    except OSError:
        return "localhost"


def port():
    "The first of three ports in a row that are free, below those that jobs draw for themselves"

    def free(n):
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", n))
                return True
            except OSError:
                return False

    return next(n for n in range(16917, 19000, 4) if all(map(free, range(n, n + 3))))


def configuration():
    name, first = node(), port()
    (ROOT / "slurm.conf").write_text(
        "\n".join(
            (
                "ClusterName=test",
                f"SlurmctldHost={name}(127.0.0.1)",
                f"SlurmctldPort={first}",
                "SlurmUser=root",
                "SlurmdUser=root",
                "AuthType=auth/munge",
                f"AuthInfo=socket={ROOT}/munge/socket,cred_expire=5",  # a job that is queued again waits as long as its credential lives
                f"StateSaveLocation={ROOT}/state",
                f"SlurmdSpoolDir={ROOT}/spool",
                f"SlurmctldPidFile={ROOT}/slurmctld.pid",
                f"SlurmdPidFile={ROOT}/slurmd.pid",
                f"SlurmctldLogFile={ROOT}/slurmctld.log",
                f"SlurmdLogFile={ROOT}/slurmd.log",
                "ProctrackType=proctrack/linuxproc",
                "TaskPlugin=task/none",
                "SwitchType=switch/none",
                "MpiDefault=none",
                "JobAcctGatherType=jobacct_gather/none",
                "JobCompType=jobcomp/none",
                "MailProg=/bin/true",
                "SelectType=select/cons_tres",
                "SelectTypeParameters=CR_Core_Memory",
                "SlurmdParameters=config_overrides",
                "SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2",
                "JobRequeue=1",
                "ReturnToService=2",
                "KillWait=5",
                "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
                f"FirstJobId={int(time.time()) % 600000 * 100 + 1000}",  # files are named by job: a number must not come twice
                "AccountingStorageType=accounting_storage/slurmdbd",
                "AccountingStorageHost=127.0.0.1",
                f"AccountingStoragePort={first + 1}",
                f"AccountingStoragePass={ROOT}/munge/socket",
                f"NodeName={name} NodeAddr=127.0.0.1 Port={first + 2} CPUs=8 RealMemory=8000 State=UNKNOWN",
                f"PartitionName=debug Nodes={name} Default=YES MaxTime=INFINITE State=UP",
                "",
            )
        )
    )
    (ROOT / "slurmdbd.conf").write_text(
        "\n".join(
            (
                "AuthType=auth/munge",
                f"AuthInfo=socket={ROOT}/munge/socket",
                "DbdHost=localhost",
                "DbdAddr=127.0.0.1",
                f"DbdPort={first + 1}",
                "SlurmUser=root",
                f"LogFile={ROOT}/slurmdbd.log",
                f"PidFile={ROOT}/slurmdbd.pid",
                "StorageType=accounting_storage/mysql",
                "StorageHost=localhost",
                "StorageUser=root",
                "StorageLoc=slurm_acct_db",
                "CommunicationParameters=NoInAddrAny",
                "",
            )
        )
    )
    (ROOT / "slurmdbd.conf").chmod(0o600)
    (ROOT / "env.sh").write_text(f"export SLURM_CONF={ROOT}/slurm.conf GLOO_SOCKET_IFNAME=lo\n")


def up():
    if works("scontrol", "ping") and works("sacct", "-n", "-X"):
        return print(ROOT / "env.sh")
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit("slurm: needs root and apt-get")
    if missing := [
        p for p in PACKAGES if "install ok" not in do("dpkg-query", "-W", "-f=${Status}", p).stdout
    ]:
        say("installing", *missing)
        apt = (
            "apt-get",
            "-qq",
            "-o",
            "DPkg::Lock::Timeout=120",
            "-o",
            "Acquire::http::Timeout=20",
            "-o",
            "Acquire::Retries=1",
        )
        must(*apt, "update")
        must(*apt, "install", "-y", "--no-install-recommends", *missing)
    down()
    try:
        start()
    except BaseException:
        down()
        raise  # half a cluster is none: also if the time is over
    say("up:", do("sinfo", "-h").stdout.strip())
    print(ROOT / "env.sh")


def start():
    for d in ("state", "spool", "munge", "db"):
        (ROOT / d).mkdir(parents=True, exist_ok=True)
    (ROOT / "munge").chmod(0o711)
    key = ROOT / "munge/key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    configuration()
    must(
        "munged",
        f"--key-file={key}",
        f"--socket={ROOT}/munge/socket",
        f"--log-file={ROOT}/munge/log",
        f"--pid-file={ROOT}/munge/pid",
        f"--seed-file={ROOT}/munge/seed",
    )
    must(
        "mariadb-install-db",
        "--no-defaults",
        "--user=root",
        f"--datadir={ROOT}/db",
        "--skip-test-db",
        "--auth-root-authentication-method=socket",
    )
    database = subprocess.Popen(
        [
            "mariadbd",
            "--no-defaults",
            "--user=root",
            f"--datadir={ROOT}/db",
            f"--socket={ROOT}/mysql.sock",
            "--skip-networking",
            f"--pid-file={ROOT}/mariadbd.pid",
            f"--log-error={ROOT}/mariadb.log",
        ],
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
    must("slurmdbd")
    until("accounting", "sacctmgr", "-n", "show", "cluster")
    do("sacctmgr", "-i", "add", "cluster", "test")
    must("slurmctld", "-f", ENV["SLURM_CONF"], "-i")
    must("slurmd", "-f", ENV["SLURM_CONF"], "-N", node())
    until("a node that runs a job", "srun", "--quiet", "-t", "1", "true")


def down():
    if (ROOT / "slurm.conf").exists() and works("scontrol", "ping"):
        do("scancel", "-u", "root")
        time.sleep(1)
        do("scontrol", "shutdown")
        time.sleep(1)
    for name in ("slurmd", "slurmctld", "slurmdbd", "mariadbd"):
        if (file := ROOT / f"{name}.pid").exists():
            pid = file.read_text().strip()
            for how in (
                "-TERM",
                "-KILL",
            ):  # only if the process is still the one that wrote the file
                for _ in range(50):
                    if (
                        not pid
                        or not Path(f"/proc/{pid}/comm").exists()
                        or name not in Path(f"/proc/{pid}/comm").read_text()
                    ):
                        break
                    do("kill", how, pid)
                    time.sleep(0.2)
    if (ROOT / "munge/socket").exists():
        do("munged", "--stop", f"--socket={ROOT}/munge/socket")
    shutil.rmtree(ROOT, ignore_errors=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("slurm: told to end"))
    {"up": up, "down": down}[sys.argv[1]]()
