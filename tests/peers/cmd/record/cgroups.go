package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Where the hierarchies of cgroups are mounted, or the one of version 2 is.
const cgroupMount = "/sys/fs/cgroup"

// cgroupRecording holds what the groups of a pod are set to, in the kernel's own files of cgroup version 2.
type cgroupRecording struct {
	// The group above the pod's.
	Parent string            `json:"parent"`
	Pod    map[string]string `json:"pod"`
	// Of those that have a group at that moment.
	Containers map[string]map[string]string `json:"containers"`
}

// limitFiles are the files of a group that limit it or weigh it against others.
var limitFiles = []string{"cpu.*", "cpuset.cpus", "cpuset.mems", "memory.*", "pids.max", "hugetlb.*.max", "io.weight"}

// Files that match but tell of what was used, or of what a machine has.
var otherFiles = []string{
	"cpu.stat", "cpu.stat.local", "cpu.pressure", "memory.current", "memory.peak", "memory.stat", "memory.numa_stat", "memory.events",
	"memory.events.local", "memory.pressure", "memory.reclaim", "memory.swap.current", "memory.swap.peak", "memory.swap.events",
	"memory.zswap.current",
}

// cgroupsOf reads what the groups of a pod are set to; nil with version 1 and for a pod without a group.
func cgroupsOf(uid string, m *made) (*cgroupRecording, error) {
	kubepods := filepath.Join(cgroupMount, cgroup, "kubepods")
	for _, class := range []string{"", "burstable", "besteffort"} {
		dir := filepath.Join(kubepods, class, "pod"+uid)
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		out := cgroupRecording{Parent: filepath.Join("kubepods", class), Containers: map[string]map[string]string{}}
		var err error
		if out.Pod, err = limitsOf(dir); err != nil {
			return nil, err
		}
		for name, r := range m.records {
			limits, err := limitsOf(filepath.Join(dir, r.ID))
			if err != nil {
				return nil, err
			}
			if len(limits) > 0 {
				out.Containers[name] = limits
			}
		}
		return &out, nil
	}
	return nil, nil
}

// limitsOf reads the limits of one group; none where it is gone.
func limitsOf(dir string) (map[string]string, error) {
	limits := map[string]string{}
	for _, pattern := range limitFiles {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			name := filepath.Base(file)
			if slices.Contains(otherFiles, name) {
				continue
			}
			text, err := os.ReadFile(file)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
				return map[string]string{}, nil
			}
			if err != nil {
				return nil, err
			}
			limits[name] = strings.TrimSpace(string(text))
		}
	}
	return limits, nil
}

// handOn hands every controller of a group of version 2 on to its children.
func handOn(dir string) error {
	controllers, err := words(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range controllers {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644); err != nil {
			return fmt.Errorf("hand the controller %s of %s on: %w", c, dir, err)
		}
	}
	return nil
}

func words(path string) ([]string, error) {
	text, err := os.ReadFile(path)
	return strings.Fields(string(text)), err
}
