// Package newfile writes files that are not there yet.
package newfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write makes the file name with data in it, on the disk, whole or not at all. If it is there
// already, or somebody else makes it first, the error wraps [fs.ErrExist].
func Write(name string, data []byte, mode fs.FileMode) error {
	temp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*.tmp") // mode 0600
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer os.Remove(temp.Name())
	if _, err = temp.Write(data); err == nil {
		err = temp.Chmod(mode)
	}
	if err == nil {
		err = temp.Sync()
	}
	if closing := temp.Close(); err == nil {
		err = closing
	}
	if err == nil {
		if err = os.Link(temp.Name(), name); err != nil && !errors.Is(err, fs.ErrExist) {
			err = rename(temp.Name(), name)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if dir, err := os.Open(filepath.Dir(name)); err == nil {
		dir.Sync() // the name as well, where the system can do that
		dir.Close()
	}
	return nil
}

// rename does where there are no links. As it replaces what is there, an empty file is made
// first, which only one caller can make.
func rename(temp, name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	if err := os.Rename(temp, name); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}
