package main

import (
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// enterPrivateWorld gives this process, which is PID 1 of its PID namespace, its own /proc, /run, /dev and network.
// /dev is small and always the same, so that what privileged containers get does not depend on the machine.
func enterPrivateWorld() error {
	type m struct {
		source, target, typ string
		flags               uintptr
		data                string
	}
	const rec = syscall.MS_REC
	steps := []m{
		{"", "/", "", syscall.MS_PRIVATE | rec, ""},
		{"", "/", "", syscall.MS_SHARED | rec, ""},
		{"proc", "/proc", "proc", 0, ""},
		{"tmpfs", "/run", "tmpfs", 0, "mode=755"},
		{"tmpfs", "/dev", "tmpfs", 0, "mode=755"},
	}
	for _, s := range steps {
		if err := syscall.Mount(s.source, s.target, s.typ, s.flags, s.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", s.typ, s.target, err)
		}
	}
	// New mounts below shared ones are shared; the peer group is this namespace's alone.
	for _, node := range []struct {
		name         string
		major, minor int
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"kmsg", 1, 11}, {"tty", 5, 0}, {"fuse", 10, 229}} {
		path := filepath.Join("/dev", node.name)
		if err := syscall.Mknod(path, syscall.S_IFCHR|0o666, node.major<<8|node.minor); err != nil {
			return fmt.Errorf("mknod %s: %w", path, err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/dev/pts", "/dev/shm", "/dev/mqueue", root, "/run/lock", "/run/berth-shapes"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := syscall.Mount("devpts", "/dev/pts", "devpts", 0, "newinstance,ptmxmode=0666,mode=0620"); err != nil {
		return fmt.Errorf("devpts: %w", err)
	}
	if err := os.Symlink("pts/ptmx", "/dev/ptmx"); err != nil {
		return err
	}
	if err := syscall.Mount("shm", "/dev/shm", "tmpfs", 0, "mode=1777"); err != nil {
		return fmt.Errorf("shm: %w", err)
	}
	if err := syscall.Sethostname([]byte(nodeName)); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "berthpeer0", "type", "bridge"},
		{"addr", "add", "10.245.77.1/24", "dev", "berthpeer0"},
		{"link", "set", "berthpeer0", "up"},
		{"route", "add", "default", "via", "10.245.77.254"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// makeCgroups makes the recorder's cgroup in every hierarchy that is mounted below /sys/fs/cgroup, or in the one there.
func makeCgroups() ([]string, error) {
	var hierarchies []string
	if _, err := os.Stat(filepath.Join(cgroupMount, "cgroup.controllers")); err == nil {
		hierarchies = []string{cgroupMount}
		// The kubelet takes no root that lacks a controller which the machine has.
		if err := handOn(cgroupMount); err != nil {
			return nil, err
		}
	} else {
		all, err := os.ReadDir(cgroupMount)
		if err != nil {
			return nil, err
		}
		for _, h := range all {
			base := filepath.Join(cgroupMount, h.Name())
			if _, err := os.Stat(filepath.Join(base, "cgroup.procs")); err == nil && h.IsDir() {
				hierarchies = append(hierarchies, base)
			}
		}
	}
	var made []string
	for _, base := range hierarchies {
		dir := filepath.Join(base, cgroup)
		// Left behind by a recorder that was killed; rmdir fails where one is at work.
		if _, err := os.Stat(dir); err == nil {
			removeCgroups([]string{dir})
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return made, fmt.Errorf("is another recorder at work? %w", err)
		}
		made = append(made, dir)
		// A new cpuset group takes nobody in before it has CPUs and memory nodes.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if text, err := os.ReadFile(filepath.Join(base, file)); err == nil {
				_ = os.WriteFile(filepath.Join(dir, file), text, 0o644)
			}
		}
	}
	if len(made) == 0 {
		return nil, fmt.Errorf("no cgroup hierarchy at or below %s", cgroupMount)
	}
	return made, nil
}

func removeCgroups(made []string) {
	for _, dir := range made {
		var all []string
		_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return nil
		})
		for i := len(all) - 1; i >= 0; i-- {
			if err := syscall.Rmdir(all[i]); err != nil {
				log.Printf("rmdir %s: %v", all[i], err)
			}
		}
	}
}
