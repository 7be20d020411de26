"""Hardware read from faked /proc and /sys trees, and from this machine."""

from pathlib import Path

import pytest

from laptime.machine.hardware import apple_silicon, machine, sysctl_values

CPU = "sys/devices/system/cpu/cpu{}/"
UNKNOWN = {
    "num_sockets": None, "num_performance_cores": None, "num_efficiency_cores": None, "caches": None,
    "governors": None, "frequency_min_hz": None, "frequency_max_hz": None,
    "container": {"num_cores": None, "memory_bytes": None},
}  # fmt: skip


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def cpu(number: int, **values: str) -> dict[str, str]:
    places = {
        "package": "topology/physical_package_id", "siblings": "topology/thread_siblings_list",
        "governor": "cpufreq/scaling_governor", "min": "cpufreq/scaling_min_freq", "max": "cpufreq/scaling_max_freq",
        "capacity": "cpu_capacity",
    }  # fmt: skip
    return {CPU.format(number) + places[name]: value for name, value in values.items()}


def cache(number: int, index: int, level: int, kind: str, size: str, shared: str) -> dict[str, str]:
    folder = CPU.format(number) + f"cache/index{index}/"
    values = {"level": str(level), "type": kind, "size": size, "shared_cpu_list": shared}
    return {folder + name: value for name, value in values.items()}


def test_laptop_of_two_cores_with_two_threads_each(work_folder):
    for number in range(4):
        core = f"{number % 2},{number % 2 + 2}"
        tree(work_folder, cpu(number, package="0", siblings=core, governor="powersave", min="400000", max="4200000"))
        for index, (level, kind, size, shared) in enumerate(
            [
                (1, "Data", "48K", core),
                (1, "Instruction", "32K", core),
                (2, "Unified", "1280K", core),
                (3, "Unified", "12M", "0-3"),
            ]
        ):
            tree(work_folder, cache(number, index, level, kind, size, shared))
    assert machine(work_folder) == UNKNOWN | {
        "num_sockets": 1,
        "governors": ["powersave"],
        "frequency_min_hz": 400_000_000,
        "frequency_max_hz": 4_200_000_000,
        "caches": [
            {"level": 1, "type": "data", "size_bytes": 48 * 2**10, "num": 2},
            {"level": 1, "type": "instruction", "size_bytes": 32 * 2**10, "num": 2},
            {"level": 2, "type": "unified", "size_bytes": 1280 * 2**10, "num": 2},
            {"level": 3, "type": "unified", "size_bytes": 12 * 2**20, "num": 1},
        ],
    }


def test_server_of_two_sockets_with_two_governors(work_folder):
    for number, (package, governor, khz) in enumerate([("0", "performance", "3900000"), ("1", "schedutil", "3500000")]):
        tree(work_folder, cpu(number, package=package, governor=governor, min="800000", max=khz))
        tree(work_folder, cache(number, 3, 3, "Unified", "32768K", str(number)))
    hardware = machine(work_folder)
    assert (hardware["num_sockets"], hardware["governors"]) == (2, ["performance", "schedutil"])
    assert (hardware["frequency_min_hz"], hardware["frequency_max_hz"]) == (800_000_000, 3_900_000_000)
    assert hardware["caches"] == [{"level": 3, "type": "unified", "size_bytes": 32 * 2**20, "num": 2}]


def test_intels_hybrid_processor_counts_cores_not_threads(work_folder):
    tree(work_folder, {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-6,8"})
    for number in range(4):
        tree(work_folder, cpu(number, siblings=f"{number - number % 2}-{number - number % 2 + 1}", capacity="1024"))
    for number in (4, 5, 6, 8):
        tree(work_folder, cpu(number, siblings=str(number), capacity="600"))
    hardware = machine(work_folder)
    assert (hardware["num_performance_cores"], hardware["num_efficiency_cores"]) == (2, 4)


@pytest.mark.parametrize(
    ("capacities", "expected"),
    [
        (["446"] * 4 + ["1024"] * 2, (2, 4)),
        (["250"] * 4 + ["700"] * 3 + ["1024"], (4, 4)),  # little, big and prime
        (["1024"] * 4, (None, None)),
        (["446", "1024", "?"], (None, None)),
    ],
)
def test_arm_cores_are_distinguished_by_capacity(capacities, expected, work_folder):
    for number, capacity in enumerate(capacities):
        tree(work_folder, cpu(number, capacity=capacity))
    hardware = machine(work_folder)
    assert (hardware["num_performance_cores"], hardware["num_efficiency_cores"]) == expected


def test_a_socket_that_the_firmware_does_not_report(work_folder):
    assert machine(tree(work_folder, cpu(0, package="-1")))["num_sockets"] is None


def container(root: Path, **files: str) -> tuple[float | None, int | None]:
    tree(root, {name.replace("__", "/").replace("_dot_", "."): content for name, content in files.items()})
    container = machine(root)["container"]
    return container["num_cores"], container["memory_bytes"]


@pytest.mark.parametrize(
    ("quota", "memory", "expected"),
    [
        ("200000 100000", "1073741824", (2.0, 2**30)),
        ("50000 100000", "max", (0.5, None)),
        ("max 100000", "1073741824", (None, 2**30)),
        ("", "", (None, None)),
        ("nonsense", "-5", (None, None)),
        ("100000 0", "1e9", (None, None)),
    ],
)
def test_limits_of_cgroup_v2(quota, memory, expected, work_folder):
    tree(work_folder, {"sys/fs/cgroup/cpu.max": quota, "sys/fs/cgroup/memory.max": memory})
    assert container(work_folder) == expected


@pytest.mark.parametrize(
    ("quota", "memory", "expected"),
    [
        ("150000", "2147483648", (1.5, 2**31)),
        ("-1", "9223372036854771712", (None, None)),
        ("0", "nonsense", (None, None)),
    ],
)
def test_limits_of_cgroup_v1(quota, memory, expected, work_folder):
    tree(work_folder, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": quota, "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
                       "sys/fs/cgroup/memory/memory.limit_in_bytes": memory})  # fmt: skip
    assert container(work_folder) == expected


def test_the_lowest_limit_of_the_cgroup_and_its_parents_counts(work_folder):
    top = "sys/fs/cgroup/"
    tree(work_folder, {
        "proc/self/cgroup": "0::/user.slice/job.scope", top + "user.slice/cpu.max": "300000 100000",
        top + "user.slice/job.scope/cpu.max": "max 100000", top + "user.slice/memory.max": "8000",
        top + "user.slice/job.scope/memory.max": "9000", top + "other.slice/cpu.max": "1000 100000",
    })  # fmt: skip
    assert container(work_folder) == (3.0, 8000)


def test_the_v1_cgroup_is_found_by_controller(work_folder):
    top = "sys/fs/cgroup/"
    tree(work_folder, {
        "proc/self/cgroup": "5:memory:/docker/b\n4:cpu,cpuacct:/docker/a\n0::/",
        top + "cpu/docker/a/cpu.cfs_quota_us": "400000", top + "cpu/docker/a/cpu.cfs_period_us": "100000",
        top + "memory/docker/b/memory.limit_in_bytes": "7000", top + "memory/docker/a/memory.limit_in_bytes": "1",
    })  # fmt: skip
    assert container(work_folder) == (4.0, 7000)


@pytest.mark.parametrize("cgroup", ["0::/docker/of-the-host", "0::/../../elsewhere", "nonsense", "0::", ":"])
def test_the_topmost_cgroup_is_used_if_the_path_is_not_visible(cgroup, work_folder):
    tree(work_folder, {"proc/self/cgroup": cgroup, "sys/fs/cgroup/cpu.max": "200000 100000"})
    assert container(work_folder) == (2.0, None)


def test_a_system_without_these_files(work_folder):
    assert machine(work_folder) == UNKNOWN


@pytest.mark.parametrize("content", ["", "nonsense", "-", "\x00", "9" * 30, "1-99999999999"])
def test_damaged_files_give_none(content, work_folder):
    tree(work_folder, cpu(0, package="x" + content, capacity=content, min=content, max=content))
    tree(work_folder, cache(0, 0, 1, "Data", content, "0") | {"proc/self/cgroup": content})
    tree(work_folder, {"sys/devices/cpu_core/cpus": "nonsense", "sys/devices/cpu_atom/cpus": ""})
    tree(work_folder, {"sys/fs/cgroup/cpu.max": content, "sys/fs/cgroup/memory.max": content})
    assert machine(work_folder) == UNKNOWN


def test_a_binary_file(work_folder):
    path = tree(work_folder, cpu(0, governor="")) / CPU.format(0) / "cpufreq/scaling_governor"
    path.write_bytes(b"\xff\xfe")
    assert machine(work_folder) == UNKNOWN


def test_apple_silicon_by_hand():
    text = (
        "hw.packages: 1\nhw.nperflevels: 2\nhw.memsize: 17179869184\nhw.model: Mac16,1\n"
        "hw.perflevel0.physicalcpu: 4\nhw.perflevel0.l1icachesize: 196608\nhw.perflevel0.l1dcachesize: 131072\n"
        "hw.perflevel0.l2cachesize: 16777216\nhw.perflevel0.cpusperl2: 4\nhw.perflevel0.name: Performance\n"
        "hw.perflevel1.physicalcpu: 6\nhw.perflevel1.l1icachesize: 131072\nhw.perflevel1.l1dcachesize: 65536\n"
        "hw.perflevel1.l2cachesize: 4194304\nhw.perflevel1.cpusperl2: 3\n"
    )
    hardware = apple_silicon(sysctl_values(text))
    assert (hardware["num_sockets"], hardware["num_performance_cores"], hardware["num_efficiency_cores"]) == (1, 4, 6)
    assert [(cache["level"], cache["type"], cache["size_bytes"], cache["num"]) for cache in hardware["caches"]] == [
        (1, "data", 2**16, 6), (1, "data", 2**17, 4), (1, "instruction", 2**17, 6), (1, "instruction", 3 * 2**16, 4),
        (2, "unified", 2**22, 2), (2, "unified", 2**24, 1),
    ]  # fmt: skip


def test_a_mac_without_these_values():
    assert set(apple_silicon({}).values()) == {None}


def test_this_machine_has_the_same_keys():
    assert machine().keys() == UNKNOWN.keys()
