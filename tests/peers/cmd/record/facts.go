package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// facts of the recording machine that show in specs; the field names are those of the spec builder.
type facts struct {
	Capabilities       []string `json:"capabilities"`
	Devices            []device `json:"devices"`
	ThermalThrottle    []string `json:"thermal_throttle"`
	HugepageSizes      []string `json:"hugepage_sizes"`
	SwapAccounting     bool     `json:"swap_accounting"`
	UnifiedCgroups     bool     `json:"unified_cgroups"`
	CgroupMountOptions []string `json:"cgroup_mount_options"`
	MemoryCapacity     int64    `json:"memory_capacity"`
	OOMScoreFloor      *int     `json:"oom_score_floor"`
}

type device struct {
	Path     string `json:"path"`
	Type     string `json:"type"`
	Major    int    `json:"major"`
	Minor    int    `json:"minor"`
	FileMode uint32 `json:"fileMode"`
	UID      uint32 `json:"uid"`
	GID      uint32 `json:"gid"`
}

// In the kernel's order of numbers.
var capabilities = strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
	LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
	SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE
	AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF
	CHECKPOINT_RESTORE`)

func hostFacts() (*facts, error) {
	f := facts{ThermalThrottle: []string{}, HugepageSizes: []string{}, CgroupMountOptions: []string{}}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, err
	}
	for line := range strings.SplitSeq(string(status), "\n") {
		if value, ok := strings.CutPrefix(line, "CapEff:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				return nil, err
			}
			for i, name := range capabilities {
				if mask>>i&1 == 1 {
					f.Capabilities = append(f.Capabilities, "CAP_"+name)
				}
			}
		}
	}
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	var kib int64
	if _, err := fmt.Sscanf(string(meminfo), "MemTotal: %d kB", &kib); err != nil {
		return nil, err
	}
	f.MemoryCapacity = kib * 1024
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return nil, err
	}
	floor, err := strconv.Atoi(strings.TrimSpace(string(own)))
	if err != nil {
		return nil, err
	}
	// containerd runs with restrict_oom_score_adj.
	f.OOMScoreFloor = &floor
	exists := func(path string) bool { _, err := os.Stat(path); return err == nil }
	f.UnifiedCgroups = exists(filepath.Join(cgroupMount, "cgroup.controllers"))
	hugetlb := exists(filepath.Join(cgroupMount, "hugetlb"))
	f.SwapAccounting = exists(filepath.Join(cgroupMount, "memory/memory.memsw.limit_in_bytes"))
	if f.UnifiedCgroups {
		controllers, err := words(filepath.Join(cgroupMount, cgroup, "cgroup.controllers"))
		if err != nil {
			return nil, err
		}
		hugetlb = slices.Contains(controllers, "hugetlb")
		f.SwapAccounting = exists(filepath.Join(cgroupMount, cgroup, "memory.swap.max"))
		if f.CgroupMountOptions, err = preservedOptions(); err != nil {
			return nil, err
		}
	}
	if hugetlb {
		sizes, err := os.ReadDir("/sys/kernel/mm/hugepages")
		if err != nil {
			return nil, err
		}
		for _, s := range sizes {
			var kb int
			if _, err := fmt.Sscanf(s.Name(), "hugepages-%dkB", &kb); err == nil {
				unit := "KB"
				for _, next := range []string{"MB", "GB"} {
					if kb >= 1024 {
						kb, unit = kb/1024, next
					}
				}
				f.HugepageSizes = append(f.HugepageSizes, fmt.Sprint(kb)+unit)
			}
		}
	}
	throttle, err := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle")
	if err != nil {
		return nil, err
	}
	f.ThermalThrottle = append(f.ThermalThrottle, throttle...)
	return &f, addDevices(&f)
}

// preservedOptions are those of the hierarchy's mount that containerd keeps where a container sees the host's.
func preservedOptions() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	found := []string{}
	for line := range strings.SplitSeq(string(text), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[4] != cgroupMount {
			continue
		}
		found = slices.DeleteFunc(strings.Split(fields[len(fields)-1], ","), func(option string) bool {
			return option != "nsdelegate" && option != "memory_recursiveprot"
		})
	}
	return found, nil
}

func addDevices(f *facts) error {
	names, err := os.ReadDir("/dev")
	if err != nil {
		return err
	}
	for _, n := range names {
		path := filepath.Join("/dev", n.Name())
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFCHR:
			f.Devices = append(f.Devices, device{path, "c", int(st.Rdev >> 8 & 0xfff), int(st.Rdev & 0xff),
				st.Mode &^ syscall.S_IFMT, st.Uid, st.Gid})
		case syscall.S_IFBLK:
			return errors.New("a block device in the private /dev")
		}
	}
	return nil
}

func writeJSON(path string, value any) error {
	text, err := marshal(value)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

func marshal(value any) ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	err := encoder.Encode(value)
	return out.Bytes(), err
}
