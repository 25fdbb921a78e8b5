package ceremony

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"bulla/record"
)

// Set changes one value of a policy, by the name that Describe shows it under: clock.limit, quotas.streams, seal.interval and so on.
// Times are written with their unit, as 10s; seal.pcrs is a list, as 0,7,13. A role is role.NAME, and who has it a list of uid:N and
// gid:N, or any; nobody, "", removes it. Whether the policy can be in force is found when it is proposed.
func (c *PolicySet) Set(name, value string) error {
	section, member, ok := strings.Cut(name, ".")
	if !ok {
		return fmt.Errorf("%s: a policy has values of clock, quotas and seal, as seal.interval, and roles, as role.auditor", quoted(name))
	}
	switch section {
	case "clock":
		return setMember(&c.Clock, name, member, value)
	case "quotas":
		return setMember(&c.Quotas, name, member, value)
	case "seal":
		return setMember(&c.Seal, name, member, value)
	case "role":
		return c.setRole(member, value)
	}
	return fmt.Errorf("%s: a policy has values of clock, quotas and seal, as seal.interval, and roles, as role.auditor", quoted(name))
}

// setMember changes one member of a struct, by its name in JSON.
func setMember[T any](to *T, name, member, value string) error {
	var known []string
	for i := range reflect.TypeFor[T]().NumField() {
		tag, _, _ := strings.Cut(reflect.TypeFor[T]().Field(i).Tag.Get("json"), ",")
		known = append(known, tag)
	}
	if !slices.Contains(known, member) {
		return fmt.Errorf("%s: there is no such value; there are %s", quoted(name), strings.Join(known, ", "))
	}
	b, err := record.MarshalCanonical(to)
	if err != nil {
		return fmt.Errorf("%s: %w", quoted(name), err)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(b, &members); err != nil {
		return fmt.Errorf("%s: %w", quoted(name), err)
	}
	if members[member], err = memberValue(name, value); err != nil {
		return err
	}
	if b, err = record.MarshalCanonical(members); err != nil {
		return fmt.Errorf("%s: %w", quoted(name), err)
	}
	var changed T
	if err := record.UnmarshalCanonical(b, &changed); err != nil {
		return fmt.Errorf("%s: %w", quoted(name), err)
	}
	*to = changed
	return nil
}

// memberValue is a value as JSON.
func memberValue(name, value string) (json.RawMessage, error) {
	if slices.Contains(durations, name) {
		d, err := time.ParseDuration(value)
		if err != nil {
			return nil, fmt.Errorf("%s: %s is not a time; write it with its unit, as 10s, 500ms or 4h", name, quoted(value))
		}
		return json.RawMessage(strconv.FormatInt(int64(d), 10)), nil
	}
	if name == "seal.pcrs" && !strings.HasPrefix(value, "[") {
		value = "[" + value + "]"
	}
	if json.Valid([]byte(value)) {
		return json.RawMessage(value), nil
	}
	b, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", quoted(name), err)
	}
	return b, nil
}

func (c *PolicySet) setRole(name, value string) error {
	r := Role{Name: name}
	for _, who := range strings.Split(value, ",") {
		kind, number, _ := strings.Cut(strings.TrimSpace(who), ":")
		if kind == "any" && number == "" {
			r.Any = true
			continue
		}
		if value == "" {
			break
		}
		id, err := strconv.ParseUint(number, 10, 32)
		switch {
		case err == nil && kind == "uid":
			r.UIDs = append(r.UIDs, uint32(id))
		case err == nil && kind == "gid":
			r.GIDs = append(r.GIDs, uint32(id))
		default:
			return fmt.Errorf("role.%s: %s is neither uid:N, gid:N nor any", Printable(name), quoted(who))
		}
	}
	i := slices.IndexFunc(c.Roles, func(o Role) bool { return o.Name == name })
	roles := slices.Clone(c.Roles) // those in force are not to be changed
	switch {
	case value == "" && i < 0:
		return fmt.Errorf("role.%s: nobody has it", Printable(name))
	case value == "":
		c.Roles = slices.Delete(roles, i, i+1)
	case i < 0:
		c.Roles = append(roles, r)
	default:
		roles[i] = r
		c.Roles = roles
	}
	return nil
}
